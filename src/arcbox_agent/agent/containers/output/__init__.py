"""What containers write: captured into their logs."""
