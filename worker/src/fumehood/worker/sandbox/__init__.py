"""The sandbox: one fresh, limited process for each attempt, judged and killed from outside."""
