"""What the tests of the census import in fresh processes, and how they start these."""
