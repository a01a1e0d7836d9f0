"""Several systems on the same images, side by side (`anchornet compare`)."""
