"""What every thread of ours in the worker needs: its device, its pauses, its throttled log."""
