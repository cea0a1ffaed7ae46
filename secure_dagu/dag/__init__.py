"""What to run: workflow text becomes frozen values, references become text, steps become a plan. Pure."""
