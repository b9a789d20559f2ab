"""How is text from the web made fit? N-gram counts and decontamination."""
