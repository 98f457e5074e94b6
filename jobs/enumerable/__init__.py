"""An enumerable world, for studies and for tests of where objectives lead."""
