"""The routes of every client: completions, training, runs, OpenAI's list of models."""
