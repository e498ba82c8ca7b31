"""Stress: a real agent under load and faults, and the judge of what it did."""
