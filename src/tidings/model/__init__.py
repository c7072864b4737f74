"""The nouns of Tidings, its messages, and the rules of their lives. No I/O, no room above this one."""
