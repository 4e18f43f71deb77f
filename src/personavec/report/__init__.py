"""Reports: a run's result.json as one offline HTML page, with its charts as PNG and SVG beside it."""
