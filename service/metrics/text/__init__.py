"""The exposition as text: families, samples and digits to bytes."""
