"""One small module for each program that greenws works with."""
