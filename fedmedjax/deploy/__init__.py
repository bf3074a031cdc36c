"""One study between hospitals: each site trains on its own notes and answers messages."""
