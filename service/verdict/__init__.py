"""One verdict on a deployment: what is the matter, what it rests on, and what to do."""
