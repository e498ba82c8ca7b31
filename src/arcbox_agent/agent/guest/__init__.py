"""The guest itself: PID 1, power, addresses."""
