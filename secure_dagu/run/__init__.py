"""How one attempt advances. Pure: no clock, no input, no output."""
