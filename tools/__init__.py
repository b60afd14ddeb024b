"""What the demo, the benchmarks and the tests share but the product does not ship."""
