"""What a load test found, for people: on a terminal, as a page, as a table in Markdown."""
