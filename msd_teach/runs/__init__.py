"""What takes hours, writes files and goes on where it was stopped."""
