"""The faces of results: `text` for people, `data` for programs, and the sentences that both use."""
