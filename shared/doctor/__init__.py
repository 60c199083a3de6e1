"""What both `doctor` commands share: checks of Redis, store and disk, and how they are shown."""
