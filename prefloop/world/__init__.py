"""The embedded help desk: facts, prompts, responses, an exact gold judge, flawed raters."""
