"""Other searches over masks, at the same number of evaluations and with the same potential as the agent."""
