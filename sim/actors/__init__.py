"""What the nodes of an environment do all day: ``async def actor(node, dice)``, until ``node.done``."""
