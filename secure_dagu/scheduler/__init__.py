"""What starts by itself: schedules, queues, automatic retries. One active scheduler among several."""
