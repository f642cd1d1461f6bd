"""People in the loop: the browser tool, the store behind it, and rounds that real annotators click through.

The server, the engine and the scripts of a team share one thing only: the database that `store` opens. What a person has
accepted is in it before the page says so.
"""
