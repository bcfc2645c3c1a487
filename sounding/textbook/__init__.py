"""The textbook: small exercises with solutions and tests, checked and turned into training texts.

`reading` reads the TOML files, `running` runs solutions against their tests in the sandbox,
`likeness` finds exercises that repeat one another or a text to keep out, `rendering` makes
documents of them and `problems` evaluation problems of the topics that are held out.
"""
