"""What every node tells all others about itself: process groups and cluster-wide names."""
