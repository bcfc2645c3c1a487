"""The markup of tool calls and its parsers: the published definition and the tolerant one."""
