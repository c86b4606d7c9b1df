"""What a declared run plays: numbered tasks, and a rollout function for each of them.

An ``Environment`` (``environment``) is one source of a taskset. Ours are a game and a tool
(``game_2048``, ``calculator``); servers of OpenEnv (``open_env``), tasksets of verifiers
(``verifiers_tasks``) and a user's own functions in a container of their own (``python_source``,
``host_link``, ``host``) are those of others. Whatever a model or an environment says is hostile.
"""
