"""What is asserted about histories. Each checker is fed facts and knows nothing of how they came about."""
