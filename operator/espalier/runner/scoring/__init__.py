"""Scores what a model wrote, in processes that hold nothing and can reach nothing.

``scorer`` starts a worker without token, environment and files (``worker``), which forks a child
for the answers (``child``). Children end after a batch; where a scorer evaluates what it reads,
after one answer.
"""
