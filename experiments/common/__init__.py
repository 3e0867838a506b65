"""What the scripts share: data, training for a comparison, measures, pictures, progress."""
