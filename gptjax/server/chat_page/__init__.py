"""The chat page: accounts, conversations, files, and the HTML that shows them."""
