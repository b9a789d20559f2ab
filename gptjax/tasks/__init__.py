"""What is it asked?"""
