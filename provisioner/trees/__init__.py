"""Lists of what is in a root, path by path and by content: a capsule's generations, and what nodes have besides."""
