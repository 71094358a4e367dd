"""What was meant, from the words that were recognised: written forms, personal data, how a call went, intents."""
