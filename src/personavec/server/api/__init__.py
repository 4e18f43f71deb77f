"""The forms of OpenAI's API: what requests may say, and what answers are made of."""
