"""All flights that left New York in January 2013: imported and analysed by jobs."""
