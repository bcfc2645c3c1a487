"""The textbook: small exercises with solutions and tests, and the training texts made from them.

`reading` reads the TOML files. `running` runs solutions against their tests in the sandbox.
`likeness` finds exercises that duplicate one another or an excluded text. `rendering` turns
exercises into documents, and `problems` turns held-out topics into evaluation problems.
"""
