"""A page of a book read under a budget, in a minute: what a cache keeps of it, what that costs and saves."""
