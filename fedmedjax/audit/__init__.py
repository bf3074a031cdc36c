"""What a finished run gives away: membership, planted identifiers, and lower bounds of epsilon."""
