"""How the sites' updates become one."""
