"""From counts to frames: snapshots of the device's counts, frames built from them, and their sender."""
