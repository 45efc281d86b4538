"""Key custody: keys are used here and never leave."""
