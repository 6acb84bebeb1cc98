// Draws the figures of a page from the data that stands in it; plotly.min.js lies beside this file.
for (const place of document.querySelectorAll("div.figure")) {
  const { data, layout } = JSON.parse(place.querySelector("script").textContent);
  Plotly.newPlot(place, data, layout, { responsive: true, displaylogo: false });
}
