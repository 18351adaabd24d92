"""What a chapter shows and asks: sizes, figures, moving pictures, exercises."""
