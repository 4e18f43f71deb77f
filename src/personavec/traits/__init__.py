"""What a trait is: instructions, questions, rubric; those that come with the package."""
