"""What is a model asked, and how well does it answer? GPT-2's and GPT-3's evaluation tasks."""
