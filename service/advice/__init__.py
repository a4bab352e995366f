"""What-if: the balance to expect under other placements of experts, and whether a change is worth it."""
