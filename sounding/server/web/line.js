// A small line chart of the last values, next to their number.

export function drawLine(canvas, values, kept) {
  const { width, height } = canvas.getBoundingClientRect();
  if (!width) return;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const color = getComputedStyle(canvas).color;
  const most = Math.max(1, ...values) * 1.15;
  const x = (index) => width - ((values.length - 1 - index) * width) / (kept - 1);
  const y = (value) => height - 1.5 - (value / most) * (height - 3);
  if (!values.length) return;
  pen.beginPath();
  values.forEach((value, index) => pen.lineTo(x(index), y(value)));
  pen.strokeStyle = color;
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.stroke();
  pen.lineTo(width, height);
  pen.lineTo(x(0), height);
  pen.closePath();
  pen.globalAlpha = 0.15;
  pen.fillStyle = color;
  pen.fill();
}
