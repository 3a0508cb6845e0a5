"""What a network looks at, its features as points, and the page that shows both."""
